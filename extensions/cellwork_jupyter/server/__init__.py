"""What runs in a user's Jupyter server: plugins of its extensions, which hand their work to the platform's services."""
