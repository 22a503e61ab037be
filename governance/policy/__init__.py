"""What is permitted: Cedar text, schema and parameters in one signed bundle, decided alike by all parties."""
