from dag_jax.report import tables


def test_a_table_is_padded_and_a_bar_in_a_text_ends_no_cell():
    columns = (("name", str), ("twice", lambda row: f"{row}{row}"))
    assert tables.markdown(["a|b", "c"], columns).splitlines() == [
        "| name |    twice |",
        "|-----:|---------:|",
        r"| a\|b | a\|ba\|b |",
        "|    c |       cc |",
    ]
