#!/usr/bin/env bash
# Calls every RPC with grpcurl through server reflection, and checks the responses.
#
# Run it with scripts/with-broker.sh. It fails if a method that reflection lists is not called.
set -uo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

address=${BANANAS_BROKER#http://}
key=grpcurl-$$-$RANDOM
passed=0
failed=0
called=

# rpc METHOD JSON: calls a method. $response is the response or the error.
rpc() {
  called="$called $1"
  response=$(grpcurl -plaintext -max-time 30 -d "$2" "$address" "bananas.v1.$1" 2>&1)
}

# expect WHAT PATTERN: the last response matches the pattern.
expect() {
  if printf '%s' "$response" | tr -d '\n' | grep -Eq -- "$2"; then
    passed=$((passed + 1))
    say "ok      $1"
  else
    failed=$((failed + 1))
    say "FAILED  $1: $2 does not match:"
    printf '%s\n' "$response"
  fi
}

# field NAME: the first string field of that name in the last response.
field() {
  printf '%s' "$response" | grep -m 1 "\"$1\":" | sed -E 's/.*: "([^"]*)".*/\1/'
}

job() {
  printf '{"routing_key":"%s","job_type":"shell","payload":"aGVsbG8=","retention":"3600s"}' "$key"
}

lease() {
  rpc BrokerService/Lease "{\"selector\":{\"routing_keys\":[\"$key\"]},\"max_jobs\":${1:-1},\"wait\":\"10s\"}"
}

# BrokerService
rpc BrokerService/Enqueue "{\"job\":$(job)}"
expect "Enqueue stores a job and names it" '"jobId": "[0-9a-f-]{36}"'
id=$(field jobId)
rpc BrokerService/BatchEnqueue "{\"jobs\":[$(job),{\"routing_key\":\"a b\"},$(job),$(job),$(job)]}"
expect "BatchEnqueue returns a result for each job" '"jobId".*"INVALID_FIELD".*"jobId"'

unique="\"unique\":{\"key\":\"k\",\"on_conflict\":\"ON_CONFLICT_DEBOUNCE\",\"delay\":\"600s\"}"
debounced="{\"routing_key\":\"$key\",\"job_type\":\"later\",$unique}"
rpc BrokerService/BatchEnqueue "{\"jobs\":[$debounced,$debounced]}"
expect "BatchEnqueue lets the second job with a unique key replace the first" '"deduplicated": true.*"replaced": true'

lease
expect "Lease returns the oldest job with a token" "\"jobId\": \"$id\".*\"leaseToken\": \"[A-Za-z0-9+/=]+\""
token=$(field leaseToken)
progress="{\"percent\":50,\"log_lines\":[\"half\"]}"
rpc BrokerService/Extend "{\"leases\":[{\"lease_token\":\"$token\",\"duration\":\"60s\",\"progress\":$progress}]}"
expect "Extend returns how long the lease runs" '"remaining": "(60|59\.[0-9]+)s"'
rpc BrokerService/Ack "{\"lease_token\":\"$token\",\"result\":{\"data\":\"b2s=\"}}"
expect "Ack is applied" '^\{ *\}$'
rpc BrokerService/Ack "{\"lease_token\":\"$token\",\"result\":{\"data\":\"b2s=\"}}"
expect "Ack again changes nothing" '"alreadySettled": true'

lease
token=$(field leaseToken)
rpc BrokerService/Nack "{\"lease_token\":\"$token\",\"failure\":{\"type\":\"E\",\"message\":\"no\"}}"
expect "Nack schedules the job for a retry" '"state": "JOB_STATE_SCHEDULED".*"runTime"'

lease
token=$(field leaseToken)
rpc BrokerService/BatchSettle \
  "{\"settlements\":[{\"lease_token\":\"$token\",\"ack\":{}},{\"lease_token\":\"anVuaw==\",\"ack\":{}}]}"
expect "BatchSettle returns a result for each settlement" '"results": \[ *\{ *\}, *\{ *"error".*"MALFORMED_TOKEN"'

# grpcurl sends only the open frame and half-closes the stream. The stream stays open until the time limit, and its jobs
# can be settled by hand.
called="$called BrokerService/Subscribe"
open="{\"open\":{\"selector\":{\"routing_keys\":[\"$key\"]},\"flow\":{\"max_jobs\":5}}}"
response=$(grpcurl -plaintext -max-time 3 -d "$open" "$address" bananas.v1.BrokerService/Subscribe 2>&1)
expect "Subscribe opens a session and sends jobs" '"opened": \{.*"sessionId".*"jobs": \{.*"leaseToken"'
expect "Subscribe stays open after the half-close" 'DeadlineExceeded'

# JobService
rpc JobService/GetJob "{\"routing_key\":\"$key\",\"job_id\":\"$id\",\"full\":true}"
expect "GetJob shows the job and its result" '"payload": "aGVsbG8=".*"state": "JOB_STATE_SUCCEEDED".*"data": "b2s="'
rpc JobService/ReadJobLog "{\"routing_key\":\"$key\",\"job_id\":\"$id\"}"
expect "ReadJobLog shows the lines with their times" '"time": "[0-9T:.-]+Z".*"line": "half".*"number": "1"'
rpc JobService/WaitJob "{\"routing_key\":\"$key\",\"job_id\":\"$id\"}"
expect "WaitJob returns at once for a settled job" '"settled": true'
rpc BrokerService/Enqueue "{\"job\":{\"routing_key\":\"$key\",\"job_type\":\"shell\",\"delay\":\"600s\"}}"
delayed=$(field jobId)
rpc JobService/ListJobs \
  "{\"routing_key\":\"$key\",\"filter\":{\"states\":[\"JOB_STATE_SCHEDULED\"],\"job_types\":[\"shell\"]}}"
expect "ListJobs finds the scheduled job" "\"jobId\": \"$delayed\".*\"examined\""
rpc JobService/ListJobs "{\"routing_key\":\"$key\",\"filter\":{}}"
expect "ListJobs names the field that is missing" 'InvalidArgument.*filter.states'
rpc JobService/CancelJob "{\"routing_key\":\"$key\",\"job_id\":\"$delayed\",\"reason\":\"not needed\"}"
expect "CancelJob cancels a waiting job" '"state": "JOB_STATE_CANCELLED"'
imported='{"spec":{"job_type":"shell","job_id":"0192f0c1-d5a8-7b3c-8f4e-2a1b3c4d5e6f"},"state":"JOB_STATE_DEAD"}'
rpc JobService/ImportJobs "{\"routing_key\":\"$key\",\"jobs\":[$imported,$imported,{}]}"
expect "ImportJobs returns a result for each job" 'OUTCOME_IMPORTED.*OUTCOME_DUPLICATE.*"INVALID_FIELD"'
name="\"routing_key\":\"$key\",\"job_id\":\"$delayed\""
rpc JobService/RedriveJob "{$name,\"delay\":\"600s\"}"
expect "RedriveJob puts a cancelled job back" '"state": "JOB_STATE_SCHEDULED".*"redrives": 1'
changed="\"job\":{\"payload\":\"aGVsbG8=\",\"priority\":9},\"update_mask\":{\"paths\":[\"payload\",\"priority\"]}"
rpc JobService/UpdateJob "{$name,$changed}"
expect "UpdateJob sets the named fields" '"priority": 9.*"etag": "[0-9a-f]+-9-1"'
rpc JobService/UpdateJob "{$name,\"etag\":\"1-5-0\",$changed}"
expect "UpdateJob refuses an old etag" 'FailedPrecondition.*STALE_ETAG'
rpc JobService/RunJobNow "{$name}"
expect "RunJobNow makes a scheduled job ready" '"state": "JOB_STATE_(READY|LEASED)"'
rpc JobService/RunJobNow "{$name}"
expect "RunJobNow refuses another state" 'FailedPrecondition.*WRONG_STATE'
lease
expect "Lease returns the job that runs now" "\"jobId\": \"$delayed\""
rpc JobService/ExpireLease "{$name,\"without_loss\":true}"
expect "ExpireLease puts a leased job back" '"state": "JOB_STATE_READY"'
rpc JobService/DeleteJob "{$name}"
expect "DeleteJob deletes a job" '^\{ *\}$'
rpc JobService/GetJob "{\"routing_key\":\"$key\",\"job_id\":\"00000000-0000-4000-8000-000000000000\"}"
expect "an error has its code and reason" 'NotFound.*JOB_NOT_FOUND'

# QueueService
rpc QueueService/ListQueues "{\"prefix\":\"$key\"}"
expect "ListQueues shows the queue" "\"routingKey\": \"$key\""
rpc QueueService/PauseQueue "{\"routing_key\":\"$key\",\"reason\":\"lunch\"}"
expect "PauseQueue pauses" '"paused": true.*"pauseReason": "lunch"'
rpc QueueService/ResumeQueue "{\"routing_key\":\"$key\"}"
expect "ResumeQueue returns the queue" "\"routingKey\": \"$key\""
rpc QueueService/GetQueue "{\"routing_key\":\"$key\"}"
expect "GetQueue counts" '"(ready|leased|scheduled|settled)": "[0-9]+"'
rpc QueueService/UpdateQueuePolicy \
  "{\"policy\":{\"routing_key\":\"$key\",\"max_waiting\":9},\"update_mask\":{\"paths\":[\"max_waiting\"]}}"
expect "UpdateQueuePolicy sets a field and says what changed" '"etag": "[0-9]+".*"path": "max_waiting".*"after": "9"'
rpc QueueService/UpdateQueuePolicy "{\"policy\":{\"routing_key\":\"$key\",\"etag\":\"7\"}}"
expect "UpdateQueuePolicy refuses an old etag" 'FailedPrecondition.*STALE_ETAG'
rpc QueueService/GetQueuePolicy "{\"routing_key\":\"$key\"}"
expect "GetQueuePolicy shows the policy" '"maxWaiting": "9"'
rpc QueueService/ListQueuePolicies "{\"prefix\":\"$key\"}"
expect "ListQueuePolicies lists the queue" "\"routingKey\": \"$key\""
rpc QueueService/DeleteQueuePolicy "{\"routing_key\":\"$key\"}"
expect "DeleteQueuePolicy removes it" '^\{ *\}$'
rpc QueueService/AuditQueue "{\"routing_key\":\"$key\"}"
expect "AuditQueue ends with a summary" '"summary": \{.*"keys"'

rpc QueueService/DeleteQueue "{\"routing_key\":\"$key\"}"
expect "DeleteQueue deletes no queue that has jobs" 'QUEUE_NOT_EMPTY'

# OperationService
dead="\"routing_key\":\"$key\",\"filter\":{\"states\":[\"JOB_STATE_DEAD\"]},\"redrive_jobs\":{}"
rpc OperationService/PreviewOperation "{$dead}"
expect "PreviewOperation says when it looked" '"complete": true.*"time"'
rpc OperationService/StartOperation "{$dead,\"reason\":\"grpcurl\"}"
expect "StartOperation returns the operation" '"operationId": "[0-9a-f-]{36}".*"redriveJobs"'
operation="{\"routing_key\":\"$key\",\"operation_id\":\"$(field operationId)\"}"
for method in PauseOperation ResumeOperation CancelOperation GetOperation WatchOperation; do
  rpc "OperationService/$method" "$operation"
  expect "$method returns the operation" '"reason": "grpcurl"'
done
rpc OperationService/ListOperations "{\"routing_key\":\"$key\"}"
expect "ListOperations lists it" '"operations": \[.*"reason": "grpcurl"'

# FleetService
rpc FleetService/GetBrokerInfo '{}'
expect "GetBrokerInfo returns the limits and the Redis" '"maxPayloadBytes": "1048576".*"version": "[0-9.]+"'
rpc FleetService/ListWorkers '{}'
expect "ListWorkers returns a list" '^\{.*\}$'

# Health service and reflection.
response=$(grpcurl -plaintext -max-time 10 "$address" grpc.health.v1.Health/Check 2>&1)
expect "the health service returns SERVING" '"status": "SERVING"'
response=$(grpcurl -plaintext -max-time 10 "$address" list 2>&1)
expect "reflection lists the services" 'bananas\.v1\.BrokerService.*grpc\.health\.v1\.Health'
response=$(grpcurl -plaintext -max-time 10 "$address" describe bananas.v1.JobSpec 2>&1)
expect "reflection describes messages" 'message JobSpec'

for service in $(grpcurl -plaintext "$address" list | grep '^bananas\.'); do
  for method in $(grpcurl -plaintext "$address" list "$service"); do
    name=${service##*.}/${method##*.}
    response=$called
    expect "$name was called" " $name( |$)"
  done
done

say "grpcurl: $passed passed, $failed failed"
[ "$failed" = 0 ]
