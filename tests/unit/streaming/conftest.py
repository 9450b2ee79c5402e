from __future__ import annotations

import pytest

pytest.register_assert_rewrite("popxl.testing.tiers", "popxl.testing.tier_transfers", "popxl.testing.tier_commits")
