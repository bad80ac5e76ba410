"""The dashboard: which runs there are, how each went, and what may be done about it."""

from perdure.web.dashboard.access import AuthorizeViewer, Viewer
from perdure.web.dashboard.routes import add_dashboard, dashboard_routes

__all__ = ["AuthorizeViewer", "Viewer", "add_dashboard", "dashboard_routes"]
