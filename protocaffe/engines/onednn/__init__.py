"""The CPU engine over oneDNN, reached through ctypes; nothing is compiled at install."""
