"""Sluice: moves a live application's background tasks from one queue system to another, and back."""
