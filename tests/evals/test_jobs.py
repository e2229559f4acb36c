"""Identities of stored scores."""

from evals import jobs
from evals.grading import code_passes, published
from tests.evals.test_score import right


def test_rules_keep_the_names_under_which_scores_were_stored():
    """Another name here means that every stored score of these rules is computed again."""
    assert jobs._rule_id(code_passes) == "evals.grading.code_passes"
    assert jobs._rule_id(published.gsm8k_strict) == "evals.published.gsm8k_strict"
    assert jobs._rule_id(jobs.make_jobs) == "evals.jobs.make_jobs"
    assert jobs._rule_id(None) is None


def test_the_file_of_a_users_own_rule_is_part_of_the_identity():
    name, digest = jobs._rule_id(right).split()
    assert name == "tests.evals.test_score.right"
    assert len(digest) == 12
