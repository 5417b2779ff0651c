"""What a request can be refused for. Each has the status that the client gets, with the sentence."""

from __future__ import annotations


class Refused(Exception):
    """Base of these. The message is one sentence for the client."""

    status = 400


class NotFound(Refused):
    """What is asked for is not there."""

    status = 404


class TooSlow(Refused):
    """The client stopped sending."""

    status = 408


class Conflict(Refused):
    """It cannot be done in the present state."""

    status = 409


class Forgotten(Refused):
    """It was there, and has to be sent again."""

    status = 410


class TooLarge(Refused):
    """More than is taken."""

    status = 413


class WrongKind(Refused):
    """A file of a kind that is not opened."""

    status = 415


class BadRequest(Refused):
    """What is asked for makes no sense."""

    status = 422


class TooMany(Refused):
    """Enough is being done already."""

    status = 429


class Overloaded(Refused):
    """Not now."""

    status = 503


class NoModel(Refused):
    """The model of a collection cannot be had."""

    status = 503


class DiskFull(Refused):
    """No room for what is to be kept."""

    status = 507
