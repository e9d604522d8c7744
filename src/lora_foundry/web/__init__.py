"""The REST API and the dashboard, for whoever sits at another screen than the machine that works."""
