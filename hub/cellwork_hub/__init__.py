"""What runs beside JupyterHub: its configuration, the supervisor, and the platform's services."""
