"""What the coordinator keeps: SQLAlchemy tables, their migrations, and the statements over them."""
