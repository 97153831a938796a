-- Before list costs were kept, they were what was paid: sums of then agree with their events, and with what corrections
-- take away from them.
UPDATE usage_rollup SET list_cost = cost WHERE list_cost = 0 AND cost <> 0;
