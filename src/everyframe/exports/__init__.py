"""Features in the layouts other people's trainers read, with their texts, their configuration and a check.

`export` writes the videos, `export_texts` the queries; `verify` reads the videos back and maps annotated windows to
rows.
"""

from everyframe.exports.run import Exported, export
from everyframe.exports.targets import TARGETS, Query, Target
from everyframe.exports.texts import ExportedTexts, export_texts
from everyframe.exports.verify import Verified, verify

__all__ = ["TARGETS", "Exported", "ExportedTexts", "Query", "Target", "Verified", "export", "export_texts", "verify"]
