"""The likely reason why a file of weights cannot be read, and what to do."""

# how many of a file's first bytes are looked at
HEAD_BYTES = 256
AGAIN = "fetch or copy it again"


def describe_damage(head: bytes, kind: str, reason: str) -> str:
    """Return why a file is refused, to stand behind its name and "is".

    Args:
        head: its first HEAD_BYTES bytes, or all.
        kind: what it should be, such as 'safetensors file'.
        reason: the reader's own words, for a file that is none of the usual others.
    """
    start = head.lstrip().lower()
    if not head:
        reason = f"it is empty; {AGAIN}"
    elif head.startswith(b"version https://git-lfs"):
        reason = "it is a pointer of Git LFS, in place of which `git lfs pull` puts the file"
    elif start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        reason = "it is a web page; fetch the file itself"
    elif not head.strip(b"\0"):
        reason = f"it begins with zeros, as an unfinished download does; {AGAIN}"
    elif head.startswith(b"\x1f\x8b"):
        reason = "it is compressed with gzip; unpack it first"
    elif head.startswith(b"PK\x03\x04") and kind == "safetensors file":
        reason = "it is a zip file, such as PyTorch and NumPy write; give it a name that ends in .pth or .npz"
    elif head[8:9] == b"{" and head[9:10] in b'"}' and kind != "safetensors file":
        reason = "it is a safetensors file; give it a name that ends in .safetensors"
    else:
        reason = f"{reason}; {AGAIN}"
    return f"damaged, truncated or no {kind}: {reason}"
