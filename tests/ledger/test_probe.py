from tests.support.ledger import world_of, CENT
from handlers.context import Limits

async def test_smoke(database_url: str) -> None:
    async with world_of(database_url, agents=2) as world:
        a, b = world.agents
        bud = await world.budget(limit=1)
        r = await a.hold(max_completion_tokens=40)
        await world.verify()
        assert await b.track(completion_tokens=30, reservation_id=r) == "applied"
        await world.verify()
        assert await world.sums(bud) == (30*CENT, 0, 0)
        await b.deny(max_completion_tokens=71)
        assert await b.track(completion_tokens=90) == "applied"
        await world.verify()
        print(await world.sums(bud))
