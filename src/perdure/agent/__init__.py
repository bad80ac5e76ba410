"""Agent tasks: readiness, the control loop, and the task that joins the two."""
