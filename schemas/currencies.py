"""ISO 4217: which codes are currencies, and how many decimals their amounts are written with.

List one of the standard as published on 2026-01-01 (package iso4217 1.16.20260101), without metals, testing codes and
what has no decimals defined (XDR, XXX). Amounts inside are nanos whatever the currency: decimals matter to people only.
"""

from functools import lru_cache
from typing import Final

from .errors import invalid

_CODES: Final = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW
CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL
HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA
MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD
RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD
USN UYI UYU UYW UZS VED VES VND VUV WST XAD XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
"""
_NO_DECIMALS: Final = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_THREE_DECIMALS: Final = "BHD IQD JOD KWD LYD OMR TND"
CODES: Final = frozenset(_CODES.split())
_DECIMALS: Final = {
    **dict.fromkeys(_NO_DECIMALS.split(), 0),
    **dict.fromkeys(_THREE_DECIMALS.split(), 3),
    "CLF": 4,
    "UYW": 4,
}


def known_currency(code: str, *, field: str = "currency") -> str:
    """The code itself. Raises SignalError ``invalid_request`` naming ``field`` and the nearest code there is."""
    if code in CODES:
        return code
    raise invalid(f"'{code[:8]}' is not an ISO 4217 currency code{_hint(code[:8].upper())}", field=field)


def minor_decimals(code: str) -> int:
    """Decimals in which people write and pay amounts of a currency: 2 for EUR, 0 for JPY, 3 for KWD."""
    return _DECIMALS.get(code, 2)


@lru_cache(maxsize=1024)
def _hint(code: str) -> str:
    """Bounded: every event of a batch may misspell another one. Letters swapped, or one letter wrong."""
    best, near = (False, 1), None
    for known in sorted(CODES):
        alike = (sorted(known) == sorted(code), sum(a == b for a, b in zip(known, code, strict=False)))
        if alike > best:
            best, near = alike, known
    return f"; did you mean '{near}'?" if near else ""
