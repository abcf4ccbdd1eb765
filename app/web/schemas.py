"""Bases of request bodies and of views of rows."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OfRow(BaseModel):
    @classmethod
    def of(cls, row: object) -> Self:
        """The view of a row whose attributes have the names of the fields."""
        return cls.model_validate(row, from_attributes=True)
