"""Pictures and sound as files: recognised by their content, read from an allow-list of formats, written in the format asked for.

Everything here is work for a thread, not for the event loop. What a file holds is never believed of its name or its label.
"""
