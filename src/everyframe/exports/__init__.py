"""Features in the layouts other people's trainers read, with their texts, their configuration and a check.

`export` writes the videos, `export_texts` the queries; `verify` reads the videos back and maps annotated windows to
rows. `export_shards` writes webdataset shards, in no trainer's layout.
"""

from everyframe.exports.run import Exported, export
from everyframe.exports.targets import TARGETS, Query, Target
from everyframe.exports.texts import ExportedTexts, export_texts
from everyframe.exports.verify import Verified, verify
from everyframe.exports.webdataset import ExportedShards, export_shards

__all__ = [
    "TARGETS",
    "Exported",
    "ExportedShards",
    "ExportedTexts",
    "Query",
    "Target",
    "Verified",
    "export",
    "export_shards",
    "export_texts",
    "verify",
]
