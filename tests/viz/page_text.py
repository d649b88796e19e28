"""What is on a page: its text, and its pictures."""

from __future__ import annotations

import base64
import io
import re

from PIL import Image


def text_of(page):
    """What a reader sees, spaces made plain."""
    body = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    plain = re.sub(r"\s+", " ", body.replace("&lt;", "<").replace("&gt;", ">"))
    return re.sub(r" ([.,;])", r"\1", plain)


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def pictures(page):
    found = re.findall(r'src(?:set)?="(data:image/(\w+);base64,[^"]+)"', page)
    return [(kind, decoded(uri)) for uri, kind in found]
