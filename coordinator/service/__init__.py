"""What the coordinator does, without HTTP: log, index, inquiries, totals."""
