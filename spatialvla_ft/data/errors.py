"""The one error of the data layer."""


class DatasetError(ValueError):
    """A dataset, an index or a card is not what it should be; the message names the cure."""
