"""What holds for every upload to the Hugging Face Hub, of models and of datasets."""

from __future__ import annotations

import re

REPO_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
"""OWNER/NAME."""
SECRET = re.compile(rb"hf_[A-Za-z0-9]{30,}")
"""What an access token of the Hub looks like."""
LARGEST = 50 * 10**9
"""Bytes that the Hub takes in one file."""
