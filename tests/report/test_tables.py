from dag_jax.report import tables


def test_a_table_is_padded_and_a_bar_in_a_text_ends_no_cell():
    columns = (("name", str), ("twice", lambda row: f"{row}{row}"))
    assert tables.markdown(["a|b", "c"], columns).splitlines() == [
        "| name |    twice |",
        "|-----:|---------:|",
        r"| a\|b | a\|ba\|b |",
        "|    c |       cc |",
    ]


def test_images_that_were_left_out_are_counted():
    rows = [{"title": "a", "skipped": 2}, {"title": "b"}, {"title": "c", "skipped": 2}]
    text = "images whose files cannot be read were left out (--skip_bad)."
    assert tables.skipped_notes(rows) == [f"a, c: 2 {text}"]
    assert tables.skipped_notes([{"title": "b", "skipped": 0}]) == []
