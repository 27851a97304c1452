"""Applying systems to videos."""
