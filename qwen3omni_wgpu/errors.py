"""Every error a user of this package can meet. Each message says what is wrong and what to do about it."""


class OmniError(Exception):
    """Root of the family; the command line prints the message as one line and exits with 2."""


class ModelNotFound(OmniError):
    """No model file at the given place, or none was named and none is installed."""


class InvalidModelFile(OmniError):
    """The file is damaged, truncated, or contradicts itself."""


class UnsupportedModel(OmniError):
    """The file is sound, but this version cannot run what is in it."""


class UnsupportedDevice(OmniError):
    """No usable GPU adapter, or the adapter lacks something that is needed."""


class DeviceLost(OmniError):
    """The driver gave up on the device, or did not answer within the time limit."""


class InvalidRequest(OmniError):
    """The caller's arguments cannot be carried out (prompt too long, bad option, ...)."""


class OutOfDeviceMemory(OmniError):
    """The device cannot hold what was asked for.

    `needed` and `free` are bytes; `free` is None where the driver does not say.
    """

    def __init__(self, message: str, needed: int | None = None, free: int | None = None):
        super().__init__(message)
        self.needed = needed
        self.free = free
