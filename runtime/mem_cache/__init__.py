"""Where keys and values live: pools of slots and who hands the slots out. Nothing here knows a request."""
