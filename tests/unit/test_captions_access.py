"""Tokens and roles of captions' administration."""

from __future__ import annotations

import pytest
from flask import Flask, jsonify
from flask.testing import FlaskClient

from captions.access import ROLES, Answer, guard

TOKENS = {"VIEW_TOKEN": "see", "OPERATE_TOKEN": "do", "ADMIN_TOKEN": "rule"}


def client(tokens: dict[str, str]) -> FlaskClient:
    app = Flask("guarded")
    needs = guard(tokens)

    def answer() -> Answer:
        return jsonify(done=True), 200

    for role in ROLES:
        app.add_url_rule(f"/{role}", role, needs(role)(answer))
    return app.test_client()


@pytest.mark.parametrize(
    ("token", "statuses"),
    [
        ("see", [200, 403, 403]),
        ("do", [200, 200, 403]),
        ("rule", [200, 200, 200]),
        ("other", [401, 401, 401]),
        ("", [401, 401, 401]),
        ("r\u00fcle", [401, 401, 401]),
    ],
)
def test_a_role_may_what_it_says(token: str, statuses: list[int]) -> None:
    asked = [client(TOKENS).get(f"/{role}", headers={"Authorization": f"Bearer {token}"}) for role in ROLES]
    assert [answer.status_code for answer in asked] == statuses


def test_a_lesser_role_is_told_what_is_needed() -> None:
    answer = client(TOKENS).get("/admin", headers={"Authorization": "Bearer see"})
    assert answer.get_json()["error"] == "this needs the role admin; the token's role is view"


def test_without_an_admin_token_administration_is_off() -> None:
    answer = client({"VIEW_TOKEN": "see"}).get("/view", headers={"Authorization": "Bearer see"})
    assert answer.status_code == 503
