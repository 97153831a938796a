-- name: plan
INSERT INTO job_run (job, planned_at, instance) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING

-- name: lock
SELECT job FROM job_run WHERE job = $1 AND planned_at = $2 AND finished_at IS NULL FOR UPDATE SKIP LOCKED

-- name: finish
UPDATE job_run SET finished_at = clock_timestamp(), instance = $3, result = $4 WHERE job = $1 AND planned_at = $2

-- name: is_finished
SELECT finished_at IS NOT NULL FROM job_run WHERE job = $1 AND planned_at = $2

-- name: forget
DELETE FROM job_run WHERE job = $1 AND planned_at < $2 AND finished_at IS NOT NULL
