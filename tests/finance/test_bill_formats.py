"""Providers' CSV files as they are exported: each known header is read, and one bad line refuses the whole file."""

from datetime import date
from typing import Any

import pytest

from handlers.finance.bill_formats import Defaults, Parsed, parse
from schemas.bill import BillColumns
from schemas.errors import SignalError

PLAIN = Defaults(currency="USD", columns=None, input_includes_cache=True)
DAY = date(2025, 10, 5)
# The header of OpenAI's usage export as of October 2025, and one of its rows (counts come as 59200.0).
OPENAI_USAGE = (
    "start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,user_id,api_key_id,model,batch,"
    "service_tier,input_tokens,output_tokens,input_cached_tokens,input_uncached_tokens,input_text_tokens,"
    "output_text_tokens,input_cached_text_tokens,input_audio_tokens,input_cached_audio_tokens,output_audio_tokens,"
    "input_image_tokens,input_cached_image_tokens,output_image_tokens\n"
    "1759622400,1759708800,2025-10-05T00:00:00+00:00,2025-10-06T00:00:00+00:00,proj_1,10.0,user-1,key_1,"
    "gpt-4o-2024-08-06,FALSE,default,59200.0,10646.0,5760.0,53440.0,53440.0,10646.0,5760.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
    "1759708800,1759795200,2025-10-06T00:00:00+00:00,2025-10-07T00:00:00+00:00,,,,,,,,,,,,,,,,,,,,\n"
)
OPENAI_COSTS = (
    "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,line_item,project_id,"
    "organization_id,organization_name\n"
    "1759622400,1759708800,2025-10-05T00:00:00+00:00,2025-10-06T00:00:00+00:00,0.1336,usd,"
    '"gpt-4o-2024-08-06, input",,org-1,Personal\n'
    "1759622400,1759708800,2025-10-05T00:00:00+00:00,2025-10-06T00:00:00+00:00,0.0072000000000000,usd,"
    '"gpt-4o-2024-08-06, cached input",,org-1,Personal\n'
    "1759622400,1759708800,2025-10-05T00:00:00+00:00,2025-10-06T00:00:00+00:00,0.10646,usd,"
    '"gpt-4o-2024-08-06, output",,org-1,Personal\n'
    "1759968000,1760054400,2025-10-09T00:00:00+00:00,2025-10-10T00:00:00+00:00,,,,,,\n"
)
# As of September 2026: the same with quantities.
OPENAI_COSTS_2026 = (
    "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,quantity,quantity_unit,line_item,"
    "user_id,api_key_id,project_id,organization_id,project_name,organization_name,user_email,api_source\n"
    "1759622400,1759708800,2025-10-05T00:00:00,2025-10-06T00:00:00,0.5,usd,1000,tokens,"
    '"gpt-5-nano, input_tokens",,key_1,proj_a,org-1,Proj A,Fixture Org,someone@example.com,\n'
)
ANTHROPIC_USAGE = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
    "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
    "usage_output_tokens,web_search_count,inference_geo,speed\n"
    "2025-10-05,claude-sonnet-4-5-20250929,key,Default,standard,≤ 200k,504,100,23,2000,97,2,not_available,\n"
    "2025-10-05,claude-sonnet-4-5-20250929,key,Default,batch,≤ 200k,1,0,0,0,1,0,not_available,\n"
)
ANTHROPIC_COST = (
    "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type,"
    "inference_geo,speed,api_key_id,api_key_status\n"
    '2025-10-05,Claude Sonnet 4.5,"Default, too",key,message,≤ 200k,input_no_cache,1.67,1.67,token,global,,k,active\n'
    "2025-10-05,Claude Sonnet 4.5,Default,key,message,≤ 200k,input_cache_write_1h,0.10,0.10,token,global,,k,active\n"
    "2025-10-05,Claude Sonnet 4.5,Default,key,message,≤ 200k,,0.02,0.02,web_search,global,,k,active\n"
)


def read(text: str, wanted: str = "auto", defaults: Defaults = PLAIN) -> Parsed:
    return parse(text, wanted=wanted, defaults=defaults, lines_max=1000)


def facts(parsed: Parsed) -> dict[tuple[str, str, str], tuple[int | None, int | None]]:
    assert {key[0] for key in parsed.lines} == {DAY}
    return {(key[1], key[2], key[3]): (line.quantity, line.cost) for key, line in parsed.lines.items()}


def test_openai_usage_is_read_by_kind() -> None:
    parsed = read(OPENAI_USAGE)
    model = "gpt-4o-2024-08-06"
    assert parsed.format == "openai_usage"
    assert facts(parsed) == {
        (model, "standard", "calls"): (10, None),
        (model, "standard", "input"): (53440, None),
        (model, "standard", "cache_read"): (5760, None),
        (model, "standard", "output"): (10646, None),
    }
    older = "\n".join(line.replace("FALSE", "true") for line in OPENAI_USAGE.splitlines())
    assert {key[2] for key in read(older).lines} == {"batch"}


def test_openai_usage_tells_modalities_apart_only_where_they_add_up() -> None:
    header = OPENAI_USAGE.partition("\n")[0]
    row = "1759622400,1759708800,a,b,,1,,,m,,,100,50,20,80,50,30,20,30,0,20,0,0,0"
    found = {key[3]: line.quantity for key, line in read(f"{header}\n{row}").lines.items()}
    assert found == {"calls": 1, "input": 50, "audio_input": 30, "cache_read": 20, "output": 30, "audio_output": 20}
    row = "1759622400,1759708800,a,b,,1,,,m,,,100,50,20,80,0,0,20,30,0,20,0,0,0"
    found = {key[3]: line.quantity for key, line in read(f"{header}\n{row}").lines.items()}
    assert found == {"calls": 1, "input": 80, "cache_read": 20, "output": 50}


def test_openai_costs_are_read_by_line_item_with_and_without_quantities() -> None:
    parsed = read(OPENAI_COSTS)
    model = "gpt-4o-2024-08-06"
    assert (parsed.format, parsed.decimals) == ("openai_costs", 9)
    assert facts(parsed) == {
        (model, "standard", "input"): (None, 133_600_000),
        (model, "standard", "cache_read"): (None, 7_200_000),
        (model, "standard", "output"): (None, 106_460_000),
    }
    assert facts(read(OPENAI_COSTS_2026)) == {("gpt-5-nano", "standard", "input"): (1000, 500_000_000)}


def test_anthropic_usage_and_cost() -> None:
    model = "claude-sonnet-4-5-20250929"
    usage = facts(read(ANTHROPIC_USAGE))
    assert {key[2]: value[0] for key, value in usage.items() if key[1] == "standard"} == {
        "input": 504,
        "cache_write": 100,
        "cache_write_1h": 23,
        "cache_read": 2000,
        "output": 97,
        "web_search": 2,
    }
    assert usage[model, "batch", "output"] == (1, None)
    parsed = read(ANTHROPIC_COST)
    assert (parsed.format, parsed.decimals) == ("anthropic_cost", 2)
    assert {key[2]: value[1] for key, value in facts(parsed).items()} == {
        "input": 1_670_000_000,
        "cache_write_1h": 100_000_000,
        "web_search": 20_000_000,
    }


def test_the_first_anthropic_header_without_the_later_columns_is_read_too() -> None:
    text = (
        "usage_date_utc,model_version,api_key,workspace,usage_type,usage_input_tokens_no_cache,"
        "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
        "usage_output_tokens,web_search_count\n"
        "2025-10-05,claude-3-5-haiku-20241022,k,Research,standard,8,0,0,0,1,0\n"
    )
    assert facts(read(text))["claude-3-5-haiku-20241022", "standard", "input"] == (8, None)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_generic_file_is_read_as_it_is_mapped(delimiter: str) -> None:
    text = (
        "\ufeffTag;Modell;Anfragen;Eingabe;Cache;Ausgabe;Betrag;W\r\n2025-10-05;m;3;100;40;7;1.5;eur\r\n"
        "2025-10-05T23:30:00-01:00;m;1;;;;-0.5;EUR\r\n"
    ).replace(";", delimiter)
    columns = BillColumns(
        date="Tag",
        model="Modell",
        calls="Anfragen",
        input_tokens="Eingabe",
        cache_read_tokens="Cache",
        output_tokens="Ausgabe",
        cost="Betrag",
        currency="W",
    )
    parsed = read(text, defaults=Defaults(currency="USD", columns=columns, input_includes_cache=True))
    assert {(key[0].day, key[3], key[4]): (v.quantity, v.cost) for key, v in parsed.lines.items()} == {
        (5, "calls", "EUR"): (3, None),
        (5, "input", "EUR"): (60, None),
        (5, "cache_read", "EUR"): (40, None),
        (5, "output", "EUR"): (7, None),
        (5, "", "EUR"): (None, 1_500_000_000),
        (6, "calls", "EUR"): (1, None),
        (6, "", "EUR"): (None, -500_000_000),
    }
    exclusive = read(text, defaults=Defaults(currency="USD", columns=columns, input_includes_cache=False))
    assert exclusive.lines[DAY, "m", "standard", "input", "EUR"].quantity == 100


ROW = "1759622400,1759708800,a,b,,1,,,m,,,10,5,0,10,10,5,0,0,0,0,0,0,0"
HEADER = OPENAI_USAGE.partition("\n")[0]


def damaged(column: str, value: str) -> str:
    cells = dict(zip(HEADER.split(","), ROW.split(","), strict=True)) | {column: value}
    return f"{HEADER}\n{ROW}\n{','.join(cells.values())}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: there is no header"),
        ("a,b,a\n", "line 1: the column 'a' is there twice"),
        ("a,b\n1,2\n", "line 1: no export that is known has such columns: a, b; use format generic with columns"),
        (HEADER.replace("num_model_requests", "requests"), "line 1: for openai_usage the column 'num_model_requests'"),
        (ANTHROPIC_COST.replace("cost_usd", "cost_eur"), "line 1: for anthropic_cost the column 'cost_usd' is missing"),
        (f"{HEADER}\n{ROW},7\n", "line 2: has 25 fields, the header 24"),
        (f'{HEADER}\n{ROW}\n"{ROW}\n', "line 3: unexpected end of data"),
        (damaged("input_tokens", "ten"), "line 3: input_tokens is 'ten', not a plain number"),
        (damaged("input_tokens", "1.5"), "line 3: input_tokens is '1.5', not a whole number from 0 on"),
        (damaged("input_tokens", "-1"), "line 3: input_tokens is '-1', not a whole number from 0 on"),
        (damaged("input_tokens", "1e3"), "line 3: input_tokens is '1e3', not a plain number"),
        (damaged("input_tokens", "9" * 17), "not a whole number from 0 on"),
        (damaged("input_tokens", ""), "line 3: input_tokens or output_tokens is empty"),
        (damaged("input_cached_tokens", "11"), "line 3: input_cached_tokens is more than input_tokens"),
        (damaged("batch", "maybe"), "line 3: batch is 'maybe', neither true nor false"),
        (damaged("start_time", ""), "line 3: start_time is empty"),
        (damaged("start_time", "9" * 15), "line 3: start_time or end_time is no time in Unix seconds"),
        (damaged("start_time", "0"), "line 3: the bucket from 1970-01-01 to 2025-10-05 is longer than a day of UTC"),
        (damaged("end_time", "1759708801"), "line 3: the bucket from 2025-10-05 to 2025-10-06 is longer than a day"),
        (
            ANTHROPIC_USAGE.replace("2025-10-05,claude", "05/10/2025,claude", 1),
            "line 2: usage_date_utc is '05/10/2025'",
        ),
        (ANTHROPIC_USAGE.replace("2025-10-05,claude", "1999-10-05,claude", 1), "before the year 2000"),
        (ANTHROPIC_COST.replace("1.67,1.67", "$,1.67"), "line 2: cost_usd is empty"),
        (ANTHROPIC_COST.replace("1.67,1.67", '"1,67",1.67'), "line 2: cost_usd is '1,67', not a plain number"),
        (
            ANTHROPIC_COST.replace("1.67,1.67", "9999999999,1.67"),
            "line 2: cost_usd is '9999999999', more than any bill",
        ),
    ],
)
def test_one_bad_line_refuses_the_file_and_is_named(text: str, told: str) -> None:
    with pytest.raises(SignalError) as error:
        read(text)
    assert error.value.field == "csv" and told in error.value.message, error.value.message


@pytest.mark.parametrize(
    ("fields", "wanted", "field"),
    [
        ({"date": "d"}, "generic", "columns"),
        ({"date": "x", "cost": "c"}, "generic", "columns.date"),
        ({"date": "d", "cost": "x"}, "auto", "columns.cost"),
        ({"date": "d", "cost": "c"}, "openai_usage", "columns"),
        (None, "generic", "columns"),
    ],
)
def test_a_mapping_that_does_not_fit_is_named(fields: dict[str, Any] | None, wanted: str, field: str) -> None:
    columns = None if fields is None else BillColumns(**fields)
    with pytest.raises(SignalError) as error:
        read("d,c\n2025-10-05,1\n", wanted, Defaults(currency="USD", columns=columns, input_includes_cache=True))
    assert error.value.field == field


def test_too_many_lines_are_refused() -> None:
    rows = "".join(f"2025-10-05,m{i},k,w,standard,c,1,0,0,0,1,0,g,\n" for i in range(200))
    with pytest.raises(SignalError, match="more than 1000 different lines"):
        read(ANTHROPIC_USAGE.partition("\n")[0] + "\n" + rows)
