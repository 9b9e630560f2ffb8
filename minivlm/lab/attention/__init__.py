"""The decoder layer by layer: where on the image a layer's attention lies, and up to which layer image tokens matter.

Commands `attention`, `sensitivity`.
"""
