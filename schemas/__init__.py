"""The wire contract: msgspec structs, subjects and error codes.

Rules for changing it: fields are only added, with defaults; none is renamed, retyped or reused. Requests refuse
unknown fields, replies and events may gain some. This package imports msgspec, the standard library and itself by
relative import only, because the client ships a copy of it.
"""

CONTRACT_VERSION = "1.0.0"
