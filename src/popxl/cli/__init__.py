"""The command ``popxl``."""
