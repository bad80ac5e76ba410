"""The one SQL store and its drivers."""
