"""Cloudflare D1: SQLite as a service, through a Worker's binding or over HTTP."""
