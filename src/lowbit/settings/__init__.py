"""Every setting, declared once: its type, default, range and meaning (imports no torch)."""
