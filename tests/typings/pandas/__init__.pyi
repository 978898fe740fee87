# pandas' own types say of most results that they are a frame or a series or unknown; to the type checker it is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
