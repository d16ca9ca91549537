"""P-SMILES to shards: canonical spellings, merged duplicates, featurized polymers.

Two passes of Ray actors. The first gives every row its canonical spelling or the reason of its
rejection. The driver then decides which rows are the first of their polymer; shards are cut from
those in the order of the input. The second pass featurizes one shard at a time. Actors only turn
arguments into bytes; the driver writes every file, so neither their number nor the order in which
they finish nor the death of any can change a byte (law L7).
"""

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import batched
from pathlib import Path
from typing import Any
