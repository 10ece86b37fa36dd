"""What was there before is left alone, and comes back."""

import gc

import pytest

from mlflow_e2eai.artifacts.graphs import only_new_garbage


def test_what_was_there_is_passed_over_and_comes_back():
    kept = [[] for _ in range(100)]
    with only_new_garbage():
        assert gc.get_freeze_count() >= len(kept)
        assert not any(each is kept[0] for each in gc.get_objects())
    assert gc.get_freeze_count() == 0
    assert any(each is kept[0] for each in gc.get_objects())


def test_new_garbage_is_collected():
    with only_new_garbage():
        own: list[object] = []
        own.append(own)
        del own
        assert gc.collect() >= 1


def test_what_the_program_set_aside_itself_stays_aside():
    gc.freeze()
    try:
        with only_new_garbage():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_an_error_gives_it_back_too():
    with pytest.raises(ZeroDivisionError):
        only_new_garbage()(lambda: 1 / 0)()
    assert gc.get_freeze_count() == 0
