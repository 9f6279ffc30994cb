"""Towers that turn sound and pictures into rows for the text model."""
