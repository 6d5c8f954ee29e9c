"""Panes, screens, actions and messages: what is on the terminal."""
