from dag_jax.datasets import CLASS_NAMES, VOID


def test_voc_s_classes_stand_in_voc_s_order():
    assert len(CLASS_NAMES) == 21 == len(set(CLASS_NAMES))
    assert CLASS_NAMES[0] == "background"
    assert list(CLASS_NAMES[1:]) == sorted(CLASS_NAMES[1:])  # the kit lists them by alphabet
    assert [CLASS_NAMES[index] for index in (1, 12, 15, 20)] == [
        "aeroplane",
        "dog",
        "person",
        "tvmonitor",
    ]
    assert VOID not in range(len(CLASS_NAMES))
