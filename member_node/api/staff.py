"""Who has a personal token for the bank-internal API; for admins only."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from governance.messages.problems import RequestError
from member_node.api.operator import staff_of
from member_node.service.staff import Role, Staff, StaffBook, StaffError


class PersonBody(BaseModel):
    """A person to add, with one role."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(max_length=48)
    role: str = Field(max_length=16)


def staff_router(staff: StaffBook, party: str) -> APIRouter:
    """The staff routes; the caller puts them behind the operator's door."""
    router = APIRouter(prefix="/staff")

    def admin(request: Request) -> Staff:
        caller = staff_of(request)
        if not caller.has(Role.ADMIN):
            raise RequestError("not-permitted", "staff are the admin's affair", party)
        return caller

    @router.get("")
    def everybody(request: Request) -> dict[str, Any]:
        """Everybody who ever had a token. Digests of tokens are not told."""
        admin(request)
        return {
            "staff": [
                {
                    "name": row.name,
                    "roles": row.roles.split(","),
                    "added_by": row.added_by,
                    "added_at_ms": row.added_at_ms,
                    "revoked_by": row.revoked_by or None,
                    "revoked_at_ms": row.revoked_at_ms or None,
                }
                for row in staff.everybody()
            ]
        }

    @router.post("")
    def add(body: PersonBody, request: Request) -> dict[str, Any]:
        """Add a person; the answer holds the token, which is told this once."""
        try:
            token = staff.add(body.name, body.role, admin(request))
        except StaffError as error:
            raise RequestError("operator", str(error), party) from error
        return {"name": body.name, "role": body.role, "token": token}

    @router.delete("/{name}")
    def revoke(name: str, request: Request) -> dict[str, Any]:
        """End a token at once."""
        try:
            staff.revoke(name, admin(request))
        except StaffError as error:
            raise RequestError("operator", str(error), party) from error
        return {"name": name, "revoked": True}

    return router
