"""What would I lose on my own videos? A sample of each, encoded dense and interleaved, compared frame by frame."""

from everyframe.audit.calibrate import calibrate
from everyframe.audit.page import audit_page
from everyframe.audit.result import Advice, Audit, Row, Setting, VideoAudit
from everyframe.audit.run import audit_videos

__all__ = ["Advice", "Audit", "Row", "Setting", "VideoAudit", "audit_page", "audit_videos", "calibrate"]
