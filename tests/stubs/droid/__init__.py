"""Stands in for DROID's package, so that robot-side scripts written for it run without a robot."""
