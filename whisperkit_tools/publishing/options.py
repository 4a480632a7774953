"""Settings of a publication."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whisperkit_tools.errors import OptionsError, option

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """How to publish.

    Attributes:
        create: Make the repository if it does not exist.
        private: Make it a private one.
        pull_request: Propose the change instead of making it.
        tag: A name for the release.
        adopt: Take over a repository that another tool laid out.
        device_table: A device table to publish instead of the recommendation.
        with_transcripts: Publish `report.html` too, which holds the texts of the datasets.
    """

    create: bool = False
    private: bool = False
    pull_request: bool = False
    tag: str | None = None
    adopt: bool = False
    device_table: Mapping[str, Any] | None = None
    with_transcripts: bool = False

    def __post_init__(self) -> None:
        """Check the tag.

        Raises:
            OptionsError: It is not a valid name, or there will be no commit to give it to.
        """
        if self.tag is None:
            return
        if not _TAG.fullmatch(self.tag) or ".." in self.tag or self.tag.endswith((".", ".lock")):
            raise OptionsError(
                f"{option('tag')}: {self.tag!r} is not a valid tag; letters, digits, '.', '_' and '-' are allowed, for "
                "example v1.0"
            )
        if self.pull_request:
            raise OptionsError(
                f"a pull request has no tag yet; omit {option('tag')}, and publish with it once the request is merged"
            )
