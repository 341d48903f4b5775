"""Settings -> JupyterHub's configuration: one `set_x(c, settings, ports)` a subject. They only set, never append."""
