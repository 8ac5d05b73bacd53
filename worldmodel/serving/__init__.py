"""The planner as a server: robot-side scripts of others ask it for actions."""
