"""Deciding with Cedar: everything is parsed once, and only Allow without a single error permits.

Cedar skips a policy that fails to evaluate. A ``forbid`` that is skipped permits, so an answer with errors is a
refusal here, and the schema is always given: it refuses a request that lacks an attribute before any policy is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import cedarpy

from governance.messages.policy import PolicyBundle
from governance.messages.roll import MembershipRoll
from governance.policy.decision import DEFAULT_DENY, EVALUATION_FAILED, AccessRequest, Decision, PolicyError
from governance.policy.parameters import check_parameters
from governance.policy.requests import KIND_GROUP, STATISTIC, statistic_id

MAX_CEDAR_BYTES = 256 * 1024
# context attributes that name an entity of this type
_ENTITY_ATTRIBUTES = {"requester": "Party"}

_ALLOW = cedarpy.Decision.Allow


class Decider:
    """One bundle and one roll, parsed. Build a new one when either changes; it may be shared between threads.

    Raises :class:`PolicyError` for a bundle that cannot decide: broken parameters, texts that do not parse or do
    not fit their schema, templates, or a policy without an ``@id`` and a ``@reason`` of its own.
    """

    def __init__(self, bundle: PolicyBundle, roll: MembershipRoll) -> None:
        check_parameters(bundle)
        if len(bundle.cedar) + len(bundle.cedar_schema) > MAX_CEDAR_BYTES:
            raise PolicyError(f"policy and schema have more than {MAX_CEDAR_BYTES} characters")
        self.policy_epoch = bundle.policy_epoch
        self._rules = _read_annotations(bundle.cedar)
        try:
            self._schema = cedarpy.Schema.from_str(bundle.cedar_schema)
            self._policies = cedarpy.PolicySet.from_str(bundle.cedar)
            validation = cedarpy.validate_policies(bundle.cedar, bundle.cedar_schema)
            entities = json.dumps(_entities(bundle, roll))
            self._entities = cedarpy.Entities.from_json_str(entities, self._schema)
        except ValueError as error:
            raise PolicyError(f"the policy cannot be used: {error}") from error
        if not validation.validation_passed:
            raise PolicyError("the policy does not fit its schema: " + "; ".join(map(str, validation.errors)))

    def decide(self, request: AccessRequest) -> Decision:
        """The decision on ``request``. Never raises for a bad request: what cannot be evaluated is refused."""
        try:
            answer = cedarpy.is_authorized(
                _cedar_request(request), self._policies, self._entities, self._schema
            )
        except (ValueError, TypeError) as error:
            return self._refuse(request, EVALUATION_FAILED, f"the request cannot be evaluated: {error}")
        errors = answer.diagnostics.errors
        if errors:
            return self._refuse(
                request, EVALUATION_FAILED, f"the request cannot be evaluated: {'; '.join(errors)}"
            )
        # the first in the order of the text, so that all parties name the same rule
        deciding = sorted(answer.diagnostics.reasons, key=_position)
        if not deciding:
            return self._refuse(request, DEFAULT_DENY, "no rule of the policy permits it")
        rule, reason = self._rules[deciding[0]]
        if answer.decision != _ALLOW:
            return self._refuse(request, rule, reason)
        return Decision(
            permitted=True, rule=rule, reason=reason, policy_epoch=self.policy_epoch, request=request
        )

    def _refuse(self, request: AccessRequest, rule: str, reason: str) -> Decision:
        return Decision(
            permitted=False, rule=rule, reason=reason, policy_epoch=self.policy_epoch, request=request
        )


def _position(policy_id: str) -> int:
    return int(policy_id.removeprefix("policy"))


def _read_annotations(text: str) -> dict[str, tuple[str, str]]:
    """``@id`` and ``@reason`` by Cedar's own policy ids, which count the policies of the text."""
    try:
        document = json.loads(cedarpy.policies_to_json_str(text))
    except ValueError as error:
        raise PolicyError(f"the policy does not parse: {error}") from error
    if document["templates"] or document["templateLinks"]:
        raise PolicyError("the policy has templates, which this protocol does not use")
    rules: dict[str, tuple[str, str]] = {}
    for policy_id, policy in document["staticPolicies"].items():
        annotations = policy.get("annotations", {})
        rule, reason = annotations.get("id"), annotations.get("reason")
        if not rule or not reason:
            raise PolicyError(f"{policy_id} has no @id or no @reason")
        if rule in (DEFAULT_DENY, EVALUATION_FAILED) or any(rule == other for other, _ in rules.values()):
            raise PolicyError(f"the policy id {rule!r} is reserved or occurs twice")
        rules[policy_id] = (rule, reason)
    return rules


def _cedar_request(request: AccessRequest) -> dict[str, object]:
    resource_type, resource_id = request.resource
    context: dict[str, object] = {
        name: {"__entity": _uid(_ENTITY_ATTRIBUTES[name], str(value))}
        if name in _ENTITY_ATTRIBUTES
        else value
        for name, value in request.context.items()
    }
    return {
        "principal": _uid("Party", request.principal),
        "action": _uid("Action", request.action),
        "resource": _uid(resource_type, resource_id),
        "context": context,
    }


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}


def _entity(
    kind: str, name: str, attributes: Mapping[str, object], parents: list[dict[str, str]]
) -> dict[str, object]:
    return {"uid": _uid(kind, name), "attrs": attributes, "parents": parents}


def _entities(bundle: PolicyBundle, roll: MembershipRoll) -> list[dict[str, object]]:
    roles = sorted({entry.role for entry in roll.parties})
    entities = [_entity("Role", role, {}, []) for role in roles]
    entities += [
        _entity("Party", entry.party, {"holds_key_share": entry.share_index > 0}, [_uid("Role", entry.role)])
        for entry in roll.parties
    ]
    groups = [rule.kind_group for rule in bundle.kinds]
    entities += [
        _entity(KIND_GROUP, group, {"kinds": groups.count(group)}, []) for group in sorted(set(groups))
    ]
    public = {directory.dataset for directory in roll.directories}
    entities += [
        _entity(
            STATISTIC,
            statistic_id(rule.template, rule.dataset),
            {
                "template": rule.template,
                "dataset": rule.dataset,
                "public_directory": rule.dataset in public,
                "colluders": rule.colluders,
                "max_cells": rule.max_cells,
                "max_days": rule.max_days,
            },
            [],
        )
        for rule in bundle.inquiries
    ]
    return entities
