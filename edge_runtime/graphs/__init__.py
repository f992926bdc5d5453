"""A bundle's graphs on onnxruntime: sessions, the two rows' cache, heads, and their memory."""
