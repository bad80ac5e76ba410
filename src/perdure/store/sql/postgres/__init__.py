"""The PostgreSQL driver of the SQL store; all of it needs psycopg."""

from importlib import import_module

try:
    import_module("psycopg")
except ImportError as error:
    raise ImportError("PostgreSQL needs psycopg: pip install 'perdure[postgres]'") from error
